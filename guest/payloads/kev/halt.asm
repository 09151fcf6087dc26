; Ends its vCPU with a code that does not fit into a byte.
%include "kev.inc"
    begin64
    mov edi, 0xCAFE
    hypercall HALT_CPU
    hlt
