; The second vCPU ends the machine, while the first one never ends.
%include "kev.inc"
    begin64
    test edi, edi
    jnz .second
    jmp $
.second:
    mov al, 7
    out 0xF4, al
    hlt
