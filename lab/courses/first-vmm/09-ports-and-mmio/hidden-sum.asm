; Adds three numbers at port 0x30, one with each width, and prints their sum. The text that is appended has the numbers.
bits 64
org 0x1000
    mov rsp, 0x80000
    mov esi, text
    call number
    mov edx, 0x30
    out dx, eax                 ; 4 bytes
    call number
    or eax, 0x55550000
    mov edx, 0x30
    out dx, ax                  ; 2 bytes: the upper half must not count
    call number
    or eax, 0x66666600
    mov edx, 0x30
    out dx, al                  ; 1 byte
    mov edx, 0x30
    in eax, dx
    mov ebx, eax
    xor eax, eax
    mov ecx, wide
    in ax, dx
    cmp ax, bx
    jne print
    xor eax, eax
    in al, dx
    cmp al, bl
    jne print
    mov eax, ebx
    mov ecx, digits
    mov edi, 10
.digit:
    xor edx, edx
    div edi
    add dl, '0'
    dec ecx
    mov [rcx], dl
    test eax, eax
    jnz .digit
print:
    mov al, [rcx]
    test al, al
    jz end
    out 0xE9, al
    inc ecx
    jmp print
end:
    hlt
    jmp end

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
wide: db "a read of 1 or 2 bytes at port 0x30 did not give the low bytes of the sum", 10, 0
    times 12 db 0
digits: db 10, 0
text:
