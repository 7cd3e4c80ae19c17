"""What tasks share that score texts with a sequence classifier."""
