"""Pictures and captions inside tars (webdataset, img2dataset), read in one pass and never unpacked."""
