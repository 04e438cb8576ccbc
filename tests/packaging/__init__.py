"""Tests of the packages, and of the guide that installs them."""
