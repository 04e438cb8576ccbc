"""What tests share: images, registries."""
