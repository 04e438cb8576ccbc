"""What the central service keeps: a data base that is only ever added to."""
