"""The embedded demo: small scenes and small backbones made from nothing, in place of downloads."""
