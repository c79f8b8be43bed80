"""Image files: NIfTI, NRRD and MetaImage, with checks of what their headers claim."""
