"""What is known of a job in one place: its data, what stands out in them, and how they are shown."""
