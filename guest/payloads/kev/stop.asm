; The second vCPU asks the machine to end, while the first never does.
%include "kev.inc"
    begin64
    test edi, edi
    jnz .second
    jmp $
.second:
    mov al, 7
    out 0xF4, al
    hlt
