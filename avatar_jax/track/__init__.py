"""From photographs and videos to what models need: landmarks, coefficients, poses, crops, camera labels, motion."""
