"""The Long Range Arena harness: tasks, one training loop, results beside the published numbers."""
