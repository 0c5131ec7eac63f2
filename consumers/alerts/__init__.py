"""What is wrong, told to people: which channel is told what and when, and how it gets there."""
