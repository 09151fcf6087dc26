; Uses the FIFO behind a model-specific register. A write ignores the upper halves of rax and rdx, and a read clears
; them.
%include "kev.inc"
    begin64
    mov ecx, FIFO_MSR
    mov rax, 0x1111111122222222
    mov rdx, 0x3333333344444444
    wrmsr
    mov rax, 0x5555555566666666
    xor edx, edx
    wrmsr
    mov rax, -1
    mov rdx, -1
    rdmsr
    mov ebx, 0x22222222
    cmp rax, rbx
    must_be_equal
    mov ebx, 0x44444444
    cmp rdx, rbx
    must_be_equal
    rdmsr
    cmp rax, 0x66666666
    must_be_equal
    test rdx, rdx
    jnz .wrong
    finish
.wrong:
    hlt
