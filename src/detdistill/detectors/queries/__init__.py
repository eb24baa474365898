"""What set predictors share: frames of their boxes, matching, and the one look of every detector with queries."""
