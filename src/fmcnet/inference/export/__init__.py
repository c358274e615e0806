"""A trained model as ONNX graphs, in float32 or int8, with a report on the differences."""
