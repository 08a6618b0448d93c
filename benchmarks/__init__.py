"""What the package costs beside the way without it: each pair measured in turns, in one run. ``make bench`` runs them all."""
