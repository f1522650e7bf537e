"""What agent.audit is made of: notes read, sentences taken for claims, claims held against figures."""
