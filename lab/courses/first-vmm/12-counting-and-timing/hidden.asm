; Makes as many writes to port 0x80, and as many stores to 0x200000, as the two numbers that are appended to it say.
bits 64
org 0x1000
    mov rsp, 0x80000
    mov esi, text
    call number
    mov ebx, eax
    call number
    mov ebp, eax
    mov edi, 0x200000
.port:
    out 0x80, al
    dec ebx
    jnz .port
.store:
    mov [rdi], eax
    dec ebp
    jnz .store
.end:
    hlt
    jmp .end

; Returns in eax the decimal number at rsi, and moves rsi behind it and the byte after it.
number:
    xor eax, eax
.next:
    movzx ecx, byte [rsi]
    inc esi
    sub ecx, '0'
    cmp ecx, 9
    ja .done
    imul eax, eax, 10
    add eax, ecx
    jmp .next
.done:
    ret
text:
