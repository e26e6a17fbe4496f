// Stands in for libtorch_cuda when hrrl_ops_cuda is linked: the name, and every symbol that we take from it. It is
// never installed; at run time the loader finds the library of the torch that is imported.
int aoti_torch_get_current_cuda_stream(void) { return 1; }
int torch_c10_cuda_check_msg(void) { return 1; }
void torch_c10_cuda_free_error_msg(void) {}
