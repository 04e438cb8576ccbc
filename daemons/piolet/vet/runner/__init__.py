"""What judges a node, under any Python from 3.8 on: an image's, too, to which this folder is sent."""
