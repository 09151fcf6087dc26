; Chapter 17: prints what it reads from port 0x11, and then the text behind it. Bit 0 of port 0x10 says that a byte is there.
bits 64
org 0x1000
next_byte:
    in al, 0x10
    test al, 1
    jz next_byte
    in al, 0x11
    test al, al
    jz done
    out 0xe9, al
    jmp next_byte
done:
    mov al, 10
    out 0xe9, al
    mov esi, text
next:
    mov al, [rsi]
    inc rsi
    test al, al
    jz end
    out 0xe9, al
    jmp next
end:
    hlt
text:
