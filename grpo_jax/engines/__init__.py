"""Who generates tokens: lockstep decoding of groups, and speculation."""
