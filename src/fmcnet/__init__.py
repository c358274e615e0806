"""fmcnet: visible-infrared person re-identification."""
