"""What the tests share: processes, servers, tars, images, documents, faults."""
