"""What every room stands on: standard library only, no word of the domain."""
