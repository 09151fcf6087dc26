; Reads and writes a model-specific register that does not exist, and handles the two #GP.
%include "kev.inc"
    begin64
    handle 13, .fault
    load_idt
    xor ebx, ebx
    mov ecx, 0xABD
    rdmsr
    wrmsr
    cmp ebx, 2
    must_be_equal
    finish
.wrong:
    hlt
.fault:
    inc ebx
    add rsp, 8                  ; the error code
    add qword [rsp], 2          ; rdmsr and wrmsr are two bytes
    iretq
