"""What all readers share: a forgiving view of a folder, small list files, rules for every dataset."""
