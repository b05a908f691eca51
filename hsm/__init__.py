"""A PKCS#11 token as estd uses one: load, log in, find the keys, sign, and believe no unchecked signature."""
