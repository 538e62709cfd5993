"""The CA: its certificates, and what happens to it in its life."""
