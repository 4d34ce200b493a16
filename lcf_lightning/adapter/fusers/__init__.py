"""Fusers, one file each; what stands in this folder is found."""

from lcf_lightning.discovery import import_modules

import_modules(__name__)
