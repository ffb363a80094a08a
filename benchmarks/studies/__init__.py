"""The papers' studies, one command each: approximation, entropy, efficiency; their inputs and their figures."""
