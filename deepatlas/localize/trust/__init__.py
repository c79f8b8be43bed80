"""Trust: a predicted Dice for every mask, and an expected error for every point, with bounds."""
