"""The page of a job: what is known of a step, as one HTML file that works offline."""
