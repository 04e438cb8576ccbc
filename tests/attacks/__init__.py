"""Attacks by an ordinary user on the node, on root and on other users; see SECURITY.md for what each is about."""
