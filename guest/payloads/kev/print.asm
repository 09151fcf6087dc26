; Each vCPU prints the same line 25 times, all at the same time. The lines must not mix.
%include "kev.inc"
    begin64
    mov r12d, edi
    lock inc dword [ready]
.wait:
    cmp [ready], esi            ; all begin together
    je .go
    pause
    jmp .wait
.go:
    mov ebx, 25
.again:
    mov edi, text
    mov esi, length
    hypercall PRINT
    dec ebx
    jnz .again
    finish
text: db "a line that is whole", 10
length equ $ - text
align 4
ready: dd 0
