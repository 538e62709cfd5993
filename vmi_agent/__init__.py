"""The CA: judges certificate signing requests, holds the key, and remembers what it issued."""
