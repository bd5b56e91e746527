"""What files, hardware, progress bars and the tracking server need; no stage is known here."""
