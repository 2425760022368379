"""HTTP/1.1 as bytes: a server that keeps each request as it came, and answers well or badly."""
