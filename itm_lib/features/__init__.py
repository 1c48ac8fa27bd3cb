"""From pixels to regions: what turns a picture and its boxes into the vectors that the models match."""
