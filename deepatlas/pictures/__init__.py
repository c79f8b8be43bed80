"""Pictures and the style of pages."""
