"""What lies below a source: files, archives, studies and pairs of image and labels."""
