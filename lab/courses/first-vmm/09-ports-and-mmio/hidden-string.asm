; Reads and writes whole strings. Prints the text that is appended to it if all elements were right.
bits 64
org 0x1000
    cld
    mov edx, 0x31
    mov edi, buffer
    mov ecx, 4
    rep insb                    ; 0 to 3
    mov ecx, 4
    rep insw                    ; 4 to 7
    mov ecx, 4
    rep insd                    ; 8 to 11
    mov esi, bytes
    cmp dword [buffer], 0x03020100
    jne print
    mov esi, words
    mov rax, 0x0007000600050004
    cmp [buffer + 4], rax
    jne print
    mov esi, dwords
    mov rax, 0x0000000900000008
    cmp [buffer + 12], rax
    jne print
    mov rax, 0x0000000B0000000A
    cmp [buffer + 20], rax
    jne print

    ; The letters of the text, added here and at the port.
    mov esi, text
    xor ebx, ebx
    xor ecx, ecx
.letter:
    movzx eax, byte [rsi + rcx]
    test eax, eax
    jz .added
    add ebx, eax
    inc ecx
    jmp .letter
.added:
    mov edx, 0x30
    rep outsb
    in eax, dx
    mov esi, sum
    cmp eax, ebx
    jne print

    ; The length of the text is a multiple of 4: prints it with each width.
    mov esi, text
    mov edx, 0xE9
    mov ecx, 2
    rep outsd
    mov ecx, 2
    rep outsw
    mov ecx, 4
    rep outsb
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
bytes: db "rep insb did not read 0, 1, 2, 3", 10, 0
words: db "rep insw did not read 4, 5, 6, 7", 10, 0
dwords: db "rep insd did not read 8, 9, 10, 11", 10, 0
sum: db "rep outsb did not add all bytes", 10, 0
    align 8, db 0
buffer: times 28 db 0
text:
