"""Who may ask: accounts, passwords, logins, sessions and roles."""
