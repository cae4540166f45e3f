"""What the service costs, beside FastEmbed called directly."""
