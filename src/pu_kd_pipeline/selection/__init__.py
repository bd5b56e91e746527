"""From scores to a manifest, and the class weights of its images."""
