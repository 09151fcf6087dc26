; Chapter 17: prints the text behind it.
bits 64
org 0x1000
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
