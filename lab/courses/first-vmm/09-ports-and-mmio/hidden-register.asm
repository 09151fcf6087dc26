; Uses the register at 0x200000 with all widths. The text that is appended has 8 letters, which it stores there; it prints
; what it loads.
bits 64
org 0x1000
    mov ebx, 0x200000
    mov rax, 0x8877665544332211
    mov [rbx], rax
    mov byte [rbx + 3], 0xAA
    mov word [rbx + 5], 0xCCBB
    mov esi, store
    mov rax, 0x88CCBB55AA332211
    xor ecx, ecx
    mov rcx, [rbx]
    cmp rcx, rax
    jne print
    mov esi, load
    xor eax, eax
    mov ax, [rbx + 6]
    cmp eax, 0x88CC
    jne print
    mov eax, [rbx + 1]
    cmp eax, 0x55AA3322
    jne print

    ; Accesses that are not completely inside: they read as all ones, and change nothing.
    mov esi, outside
    mov rax, [rbx + 4]
    cmp rax, -1
    jne print
    mov rax, [rbx + 8]
    cmp rax, -1
    jne print
    xor eax, eax
    mov [rbx + 4], rax
    mov rax, 0x88CCBB55AA332211
    cmp [rbx], rax
    jne print

    mov rax, [text]
    mov [rbx], rax
    xor ecx, ecx
.letter:
    mov al, [rbx + rcx]
    out 0xE9, al
    inc ecx
    cmp ecx, 8
    jb .letter
    mov al, 10
    out 0xE9, al
    jmp end
print:
    lodsb
    test al, al
    jz end
    out 0xE9, al
    jmp print
end:
    hlt
    jmp end
store: db "stores of 8, 1 and 2 bytes did not change exactly these bytes of the register", 10, 0
load: db "a load of 2 or 4 bytes did not give the bytes at its offset", 10, 0
outside: db "an access that is not completely inside the register must read as all ones, and change nothing", 10, 0
text:
