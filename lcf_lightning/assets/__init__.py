"""The two tiny pretrained models of the embedded default, and the script that made them."""
