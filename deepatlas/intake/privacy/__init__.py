"""What keeps a dataset from identifying anybody: pseudonyms, redaction of messages, names that are private."""
