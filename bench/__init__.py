"""Load generators and drills: measures a running estd from outside, with the standard protocol only."""
