"""Networks as files for other runtimes: one form for all of them, then one module a format.

`form` is the network in plain operations, `whole` what belongs around it, `prepare` the graph that
`torch.export` gives. Then `onnx`, `coreml`, `litert`, `executorch` and `openvino` each write a
file and run it, `formats` names them, and `verify` compares a file's answers with PyTorch's.
"""
