; Uses ports and an address where nothing is. Prints the text that is appended to it if all reads were all ones.
bits 64
org 0x1000
    mov eax, 0x1234
    out 0x80, al
    mov edx, 0xCF8
    out dx, eax
    mov esi, wrong_port
    xor eax, eax
    in al, 0x60
    cmp al, 0xFF
    jne print
    mov edx, 0xCFC
    xor eax, eax
    in eax, dx
    cmp eax, -1
    jne print
    mov ebx, 0x200000
    mov dword [rbx], 0x1234
    mov esi, wrong_address
    xor eax, eax
    mov eax, [rbx + 0x10]
    cmp eax, -1
    jne print
    xor eax, eax
    mov al, [rbx]
    cmp al, 0xFF
    jne print
    mov esi, text
print:
    lodsb
    test al, al
    jz end
    out 0xE9, al
    jmp print
end:
    hlt
    jmp end
wrong_port: db "a port without a device did not read as 0xff", 10, 0
wrong_address: db "an address without memory did not read as 0xff", 10, 0
text:
